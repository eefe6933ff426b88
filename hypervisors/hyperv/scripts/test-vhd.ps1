# Whether a disk's file and those below it can be opened. { path } An invalid chain is a result; a missing file is an error.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $null = Get-Item -LiteralPath $argument.path -Force
    $problem = $null
    try { $valid = [bool](Test-VHD -Path $argument.path) }
    catch {
        $valid = $false
        $problem = @{
            id = $_.FullyQualifiedErrorId
            hresult = $_.Exception.GetBaseException().HResult
            message = $_.Exception.Message
        }
    }
    $result = @{ valid = $valid; problem = $problem }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
