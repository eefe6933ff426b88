import com.google.gson.annotations.SerializedName;
import java.util.Date;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The fields of CloudStack's commands and answers, as its wire has them. */
final class Beans {
    private static final Map<String, Class<?>> BY_NAME = new HashMap<>();
    private static final Map<Class<?>, String> NAMES = new HashMap<>();

    private Beans() {
    }

    static Class<?> classOf(String name) {
        Class<?> known = BY_NAME.get(name);
        if (known == null) {
            throw new IllegalArgumentException("no bean for " + name);
        }
        return known;
    }

    static String nameOf(Class<?> bean) {
        return NAMES.get(bean);
    }

    private static void in(String javaPackage, Class<?>... beans) {
        for (Class<?> bean : beans) {
            String name = javaPackage + "." + bean.getSimpleName();
            BY_NAME.put(name, bean);
            NAMES.put(bean, name);
        }
    }

    static {
        in("org.apache.cloudstack.storage.to", VolumeObjectTO.class, TemplateObjectTO.class, SnapshotObjectTO.class,
            PrimaryDataStoreTO.class, ImageStoreTO.class);
        in("com.cloud.agent.api.to", S3TO.class, NfsTO.class, SwiftTO.class);
        in("org.apache.cloudstack.storage.command", CopyCommand.class, CopyCmdAnswer.class, CreateObjectCommand.class,
            CreateObjectAnswer.class, DeleteCommand.class, AttachCommand.class, AttachAnswer.class, DettachCommand.class,
            DettachAnswer.class, DetachCommand.class, DetachAnswer.class, IntroduceObjectCmd.class,
            IntroduceObjectAnswer.class, ForgetObjectCmd.class, SnapshotAndCopyCommand.class, SnapshotAndCopyAnswer.class,
            ResignatureCommand.class, ResignatureAnswer.class, SyncVolumePathCommand.class, SyncVolumePathAnswer.class,
            RevertSnapshotCommand.class, CheckDataStoreStoragePolicyComplianceCommand.class,
            CheckDataStoreStoragePolicyComplainceCommand.class, DownloadCommand.class, DownloadProgressCommand.class,
            UploadStatusCommand.class, UploadStatusAnswer.class, MoveVolumeCommand.class);
        in("org.apache.cloudstack.storage.command.browser", ListDataStoreObjectsCommand.class,
            ListDataStoreObjectsAnswer.class);
        in("org.apache.cloudstack.agent.directdownload", HttpDirectDownloadCommand.class, HttpsDirectDownloadCommand.class,
            MetalinkDirectDownloadCommand.class, NfsDirectDownloadCommand.class, DirectDownloadAnswer.class,
            CheckUrlCommand.class, CheckUrlAnswer.class);
        in("com.cloud.agent.api", Answer.class, UnsupportedAnswer.class, ModifyStoragePoolCommand.class,
            ModifyStoragePoolAnswer.class, CreateStoragePoolCommand.class, DeleteStoragePoolCommand.class,
            GetStorageStatsCommand.class, GetStorageStatsAnswer.class, GetVolumeStatsCommand.class,
            GetVolumeStatsAnswer.class, SecStorageSetupCommand.class, SecStorageSetupAnswer.class,
            ComputeChecksumCommand.class, DeleteSnapshotsDirCommand.class, CleanupSnapshotBackupCommand.class,
            StartupRoutingCommand.class, StartupSecondaryStorageCommand.class, StartupAnswer.class, ReadyCommand.class,
            ReadyAnswer.class, PingCommand.class, PingRoutingCommand.class, PingStorageCommand.class, PingAnswer.class,
            ShutdownCommand.class, MaintainCommand.class, MaintainAnswer.class, CancelCommand.class,
            AgentControlAnswer.class, ConsoleAccessAuthenticationCommand.class, ConsoleProxyLoadReportCommand.class,
            CleanupNetworkRulesCmd.class, MigrateAgentConnectionCommand.class, MigrateAgentConnectionAnswer.class,
            CheckNetworkCommand.class, CheckNetworkAnswer.class, CheckHealthCommand.class, CheckHealthAnswer.class,
            GetHostStatsCommand.class, GetHostStatsAnswer.class);
        in("com.cloud.agent.api.storage", ResizeVolumeCommand.class, ResizeVolumeAnswer.class, MigrateVolumeCommand.class,
            MigrateVolumeAnswer.class, PrimaryStorageDownloadCommand.class, PrimaryStorageDownloadAnswer.class,
            ListTemplateCommand.class, ListTemplateAnswer.class, ListVolumeCommand.class, ListVolumeAnswer.class,
            DownloadAnswer.class);
        in("org.apache.cloudstack.agent.lb", SetupMSListCommand.class, SetupMSListAnswer.class);
        in("org.apache.cloudstack.ca", SetupKeyStoreCommand.class, SetupKeystoreAnswer.class, SetupCertificateCommand.class,
            SetupCertificateAnswer.class);
    }

    // ------------------------------------------------------------------------------------------- transfer objects

    enum ImageFormat { QCOW2, RAW, VHD, ISO, OVA, VHDX, BAREMETAL, VMDK, VDI, TAR, DIR }

    enum ProvisioningType { THIN, SPARSE, FAT }

    enum DataStoreRole { Primary, Image, ImageCache, Backup, Object }

    interface DataTO { }

    interface DataStoreTO { }

    static class VolumeObjectTO implements DataTO {
        String uuid, volumeType, name, path, vmName, chainInfo, cacheMode, hypervisorType, encryptFormat;
        DataStoreTO dataStore;
        Long size, volumeId, accountId, id, deviceId, poolId, bytesReadRate, bytesWriteRate, iopsReadRate, iopsWriteRate;
        ImageFormat format;
        ProvisioningType provisioningType;
        Boolean directDownload, deployAsIs;
        byte[] passphrase;
    }

    static class TemplateObjectTO implements DataTO {
        String path, origUrl, uuid, checksum, displayText, name, guestOsType, hypervisorType, uniqueName;
        Long id, accountId, size, physicalSize;
        ImageFormat format;
        Boolean hvm, bootable, directDownload, deployAsIs, followRedirects;
        DataStoreTO imageDataStore;
    }

    static class SnapshotObjectTO implements DataTO {
        String path, parentSnapshotPath, vmName, name, hypervisorType;
        VolumeObjectTO volume;
        DataStoreTO dataStore;
        Long id, accountId, physicalSize;
        Boolean quiescevm;
        List<String> parents;
    }

    static class NfsTO implements DataStoreTO {
        @SerializedName("_url") String url;
        @SerializedName("_role") DataStoreRole role;
        String uuid, nfsVersion;
    }

    static class S3TO implements DataStoreTO {
        Long id, maxSingleUploadSizeInBytes;
        String uuid, accessKey, secretKey, endPoint, bucketName, signer;
        Boolean httpsFlag, useTCPKeepAlive, enableRRS;
        Integer connectionTimeout, maxErrorRetry, socketTimeout, connectionTtl;
        Date created;
    }

    static class SwiftTO implements DataStoreTO {
        Long id;
        String url, account, userName, key, storagePolicy;
    }

    static class PrimaryDataStoreTO implements DataStoreTO {
        String uuid, name, type, poolType, host, path, url;
        Long id;
        int port;
        Map<String, String> details;
        Boolean fullCloneFlag, isManaged;
    }

    static class ImageStoreTO implements DataStoreTO {
        String type, uri, providerName, uuid;
        DataStoreRole role;
    }

    static class DiskTO {
        DataTO data;
        Long diskSeq;
        String path, type;
        Map<String, String> details;
    }

    static class StorageFilerTO {
        long id;
        String uuid, host, path, userInfo, type;
        int port;
    }

    // ------------------------------------------------------------------------------------------------- the base

    static class Command {
        Map<String, String> contextMap;
        int wait;
        boolean bypassHostMaintenance;
    }

    static class Answer extends Command {
        boolean result;
        String details;
    }

    static class UnsupportedAnswer extends Answer { }

    // ---------------------------------------------------------------------------------------- storage subsystem

    static class CopyCommand extends Command {
        DataTO srcTO, destTO, cacheTO;
        boolean executeInSequence;
        Map<String, String> options, options2;
    }

    static class CopyCmdAnswer extends Answer { DataTO newData; }

    static class CreateObjectCommand extends Command { DataTO data; }

    static class CreateObjectAnswer extends Answer { DataTO data; }

    static class DeleteCommand extends Command { DataTO data; }

    static class AttachCommand extends Command {
        DiskTO disk;
        String vmName;
        boolean inSeq, forced;
        Map<String, String> controllerInfo;
    }

    static class AttachAnswer extends Answer { DiskTO disk; }

    static class DettachCommand extends Command {
        DiskTO disk;
        String vmName;
        @SerializedName("_managed") boolean managed;
        @SerializedName("_iScsiName") String iScsiName;
        @SerializedName("_storageHost") String storageHost;
        @SerializedName("_storagePort") int storagePort;
        Map<String, String> params;
        boolean forced;
        Long waitDetachDevice;
    }

    static class DettachAnswer extends Answer { DiskTO disk; }

    static class DetachCommand extends DettachCommand { }

    static class DetachAnswer extends DettachAnswer { }

    static class IntroduceObjectCmd extends Command { DataTO dataTO; }

    static class IntroduceObjectAnswer extends Answer { DataTO dataTO; }

    static class ForgetObjectCmd extends Command { DataTO dataTO; }

    static class SnapshotAndCopyCommand extends Command {
        @SerializedName("_uuidOfSourceVdi") String uuidOfSourceVdi;
        @SerializedName("_sourceDetails") Map<String, String> sourceDetails;
        @SerializedName("_destDetails") Map<String, String> destDetails;
        @SerializedName("_executeInSequence") boolean executeInSequence;
    }

    static class SnapshotAndCopyAnswer extends Answer { @SerializedName("_path") String path; }

    static class ResignatureCommand extends Command {
        Map<String, String> details;
        boolean executeInSequence;
    }

    static class ResignatureAnswer extends Answer {
        long size;
        String path;
        ImageFormat format;
    }

    static class SyncVolumePathCommand extends Command {
        DiskTO disk;
        String vmName;
    }

    static class SyncVolumePathAnswer extends Answer { DiskTO disk; }

    static class RevertSnapshotCommand extends Command {
        SnapshotObjectTO data, dataOnPrimaryStorage;
        @SerializedName("_executeInSequence") boolean executeInSequence;
    }

    static class CheckDataStoreStoragePolicyComplianceCommand extends Command {
        String storagePolicyId;
        StorageFilerTO storagePool;
    }

    static class CheckDataStoreStoragePolicyComplainceCommand extends CheckDataStoreStoragePolicyComplianceCommand { }

    static class HttpDirectDownloadCommand extends Command {
        String url, checksum, format;
        Long templateId, templateSize;
        TemplateObjectTO destData;
        PrimaryDataStoreTO destPool;
        Map<String, String> headers;
        Integer connectTimeout, soTimeout, connectionRequestTimeout;
        boolean followRedirects;
    }

    static class HttpsDirectDownloadCommand extends HttpDirectDownloadCommand { }

    static class MetalinkDirectDownloadCommand extends HttpDirectDownloadCommand { }

    static class NfsDirectDownloadCommand extends HttpDirectDownloadCommand { }

    static class DirectDownloadAnswer extends Answer {
        Long templateSize;
        String installPath;
        boolean retryOnOtherHosts;
    }

    static class CheckUrlCommand extends Command {
        String format, url;
        Integer connectTimeout, connectionRequestTimeout, socketTimeout;
        boolean followRedirects;
    }

    static class CheckUrlAnswer extends Answer { Long templateSize; }

    // ------------------------------------------------------------------------------------------- volumes and pools

    static class ResizeVolumeCommand extends Command {
        String path, vmInstance, chainInfo, iScsiName, encryptFormat;
        StorageFilerTO pool;
        Long currentSize, newSize;
        boolean shrinkOk, managed;
        byte[] passphrase;
    }

    static class ResizeVolumeAnswer extends Answer { long newSize; }

    static class MigrateVolumeCommand extends Command {
        long volumeId;
        String volumePath, chainInfo, attachedVmName, volumeType, hostGuidInTargetCluster;
        StorageFilerTO pool, sourcePool;
        DataTO srcData, destData;
        Map<String, String> srcDetails, destDetails;
    }

    static class MigrateVolumeAnswer extends Answer { String volumePath, volumeChain; }

    static class PrimaryStorageDownloadCommand extends Command {
        String url, format, name, localPath, poolUuid, secondaryStorageUrl, primaryStorageUrl;
        Long accountId, poolId;
        StorageFilerTO primaryPool;
    }

    static class PrimaryStorageDownloadAnswer extends Answer {
        String installPath;
        long templateSize;
    }

    static class CleanupSnapshotBackupCommand extends Command { }

    static class TemplateProp {
        String templateName, installPath;
        long size, physicalSize, id;
        boolean isPublic, isCorrupted;
    }

    static class StoragePoolInfo {
        String uuid, host, localPath, hostPath, poolType, name;
        long capacityBytes, availableBytes;
        Map<String, String> details;
    }

    static class ModifyStoragePoolCommand extends Command {
        boolean add;
        StorageFilerTO pool;
        String localPath, storagePath;
        Map<String, String> details;
    }

    static class ModifyStoragePoolAnswer extends Answer {
        StoragePoolInfo poolInfo;
        Map<String, TemplateProp> templateInfo;
        String localDatastoreName, poolType;
        List<ModifyStoragePoolAnswer> datastoreClusterChildren;
    }

    static class CreateStoragePoolCommand extends ModifyStoragePoolCommand {
        @SerializedName("_createDatastore") boolean createDatastore;
        @SerializedName("_details") Map<String, String> moreDetails;
    }

    static class DeleteStoragePoolCommand extends Command {
        @SerializedName("_pool") StorageFilerTO pool;
        @SerializedName("_localPath") String localPath;
        @SerializedName("_removeDatastore") boolean removeDatastore;
        @SerializedName("_details") Map<String, String> details;
    }

    static class GetStorageStatsCommand extends Command {
        String id, localPath, pooltype, secUrl, nfsVersion;
        DataStoreTO store;
    }

    static class GetStorageStatsAnswer extends Answer {
        long usedBytes, capacityBytes;
        Long capacityIops, usedIops;
    }

    static class VolumeStatsEntry {
        String volumeUuid;
        long physicalsize, virtualSize;
    }

    static class GetVolumeStatsCommand extends Command {
        List<String> volumeUuids;
        String poolType, poolUuid;
    }

    static class GetVolumeStatsAnswer extends Answer {
        String poolUuid, poolType;
        HashMap<String, VolumeStatsEntry> volumeStats;
    }

    // ------------------------------------------------------------------------------------- secondary storage VM

    static class Certificates { String privKey, privCert, certChain, rootCACert; }

    static class SecStorageSetupCommand extends Command {
        DataStoreTO store;
        String secUrl, postUploadKey, nfsVersion;
        Certificates certs;
    }

    static class SecStorageSetupAnswer extends Answer { @SerializedName("_dir") String dir; }

    static class ComputeChecksumCommand extends Command {
        DataStoreTO store;
        String templatePath, algorithm;
    }

    static class DeleteSnapshotsDirCommand extends Command {
        DataStoreTO store;
        String directory;
    }

    static class MoveVolumeCommand extends Command { String volumeUuid, volumeName, datastoreUri, srcPath, destPath; }

    static class ListTemplateCommand extends Command {
        DataStoreTO store;
        String secUrl, nfsVersion;
    }

    static class ListTemplateAnswer extends Answer {
        String secUrl;
        Map<String, TemplateProp> templateInfos;
    }

    static class ListVolumeCommand extends Command {
        DataStoreTO store;
        String secUrl;
    }

    static class ListVolumeAnswer extends Answer {
        String secUrl;
        Map<Long, TemplateProp> templateInfos;
    }

    static class ListDataStoreObjectsCommand extends Command {
        DataStoreTO store;
        String path;
        int startIndex, pageSize;
    }

    static class ListDataStoreObjectsAnswer extends Answer {
        boolean pathExists;
        int count;
        List<String> names, paths, absPaths;
        List<Boolean> isDirs;
        List<Long> sizes, lastModified;
    }

    enum ResourceType { VOLUME, TEMPLATE, SNAPSHOT, ARCHIVE }

    enum RequestType { GET_STATUS, ABORT, RESTART, PURGE, GET_OR_RESTART }

    enum DownloadStatus { UNKNOWN, DOWNLOAD_ERROR, NOT_DOWNLOADED, DOWNLOAD_IN_PROGRESS, DOWNLOADED, ABANDONED, UPLOADED, BYPASSED }

    enum UploadStatus { UNKNOWN, IN_PROGRESS, COMPLETED, ERROR }

    enum EntityType { Volume, Template }

    static class PasswordAuth { String userName, password; }

    static class Proxy {
        @SerializedName("_host") String host;
        @SerializedName("_port") int port;
        @SerializedName("_userName") String userName;
        @SerializedName("_password") String password;
    }

    static class DownloadCommand extends Command {
        String url, format, name, secUrl, description, checksum, installPath;
        Long accountId, id, maxDownloadSizeInBytes;
        boolean hvm, followRedirects;
        PasswordAuth auth;
        @SerializedName("_proxy") Proxy proxy;
        ResourceType resourceType;
        @SerializedName("_store") DataStoreTO store;
        DataStoreTO cacheStore;
    }

    static class DownloadProgressCommand extends DownloadCommand {
        String jobId;
        RequestType request;
    }

    static class DownloadAnswer extends Answer {
        String jobId, errorString, downloadPath, installPath, checkSum;
        int downloadPct;
        DownloadStatus downloadStatus;
        long templateSize, templatePhySicalSize;
    }

    static class UploadStatusCommand extends Command {
        String entityUuid;
        EntityType entityType;
        Boolean abort;
    }

    static class UploadStatusAnswer extends Answer {
        UploadStatus status;
        long virtualSize, physicalSize;
        String installPath;
        int downloadPercent;
    }

    // ------------------------------------------------------------------------------------------------- sessions

    static class StartupCommand extends Command {
        String type, dataCenter, pod, cluster, guid, name, version, iqn, publicIpAddress, publicNetmask, publicMacAddress,
            privateIpAddress, privateMacAddress, privateNetmask, storageIpAddress, storageNetmask, storageMacAddress,
            agentTag, resourceName, gatewayIpAddress, msHostList, arch;
        Long id;
        boolean connectionTransferred;
    }

    static class StartupRoutingCommand extends StartupCommand {
        Integer cpuSockets;
        int cpus;
        long speed, memory, dom0MinMemory;
        boolean poolSync, supportsClonedVolumes;
        String caps, hypervisorType, hypervisorVersion;
        Map<String, String> hostDetails, groupDetails;
        List<String> hostTags;
        Boolean hostHealthCheckResult;
    }

    static class StartupSecondaryStorageCommand extends StartupCommand { }

    static class StartupAnswer extends Answer {
        long hostId;
        String hostName, hostUuid;
        int pingInterval;
    }

    static class ReadyCommand extends Command {
        @SerializedName("_details") String refusal;
        Long dcId, hostId, lbCheckInterval;
        String hostUuid, hostName, lbAlgorithm, arch;
        List<String> msHostList, avoidMsHostList;
        Boolean enableHumanReadableSizes;
    }

    static class ReadyAnswer extends Answer { Map<String, String> detailsMap; }

    static class PingCommand extends Command {
        String hostType;
        long hostId;
        boolean outOfBand;
    }

    static class PingRoutingCommand extends PingCommand {
        @SerializedName("_gatewayAccessible") boolean gatewayAccessible;
        @SerializedName("_vnetAccessible") boolean vnetAccessible;
        @SerializedName("_hostVmStateReport") Map<String, String> hostVmStateReport;
        Boolean hostHealthCheckResult;
    }

    static class PingStorageCommand extends PingCommand { Map<String, Boolean> changes; }

    static class PingAnswer extends Answer {
        boolean sendStartup;
        List<String> avoidMsList;
    }

    static class ShutdownCommand extends Command {
        String reason, detail;
        boolean removeHost;
    }

    static class MaintainCommand extends Command { }

    static class MaintainAnswer extends Answer { boolean willMigrate; }

    static class CancelCommand extends Command {
        long sequence;
        String reason;
        boolean checkOnly;
    }

    static class AgentControlAnswer extends Answer { }

    static class ConsoleAccessAuthenticationCommand extends Command {
        @SerializedName("_host") String host;
        @SerializedName("_port") String port;
        @SerializedName("_vmId") String vmId;
        @SerializedName("_sid") String sid;
        @SerializedName("_ticket") String ticket;
        @SerializedName("_isReauthenticating") boolean isReauthenticating;
    }

    static class ConsoleProxyLoadReportCommand extends Command {
        @SerializedName("_proxyVmId") long proxyVmId;
        @SerializedName("_loadInfo") String loadInfo;
    }

    static class CleanupNetworkRulesCmd extends Command { int interval; }

    static class SetupMSListCommand extends Command {
        List<String> msList, avoidMsList;
        String lbAlgorithm;
        Long lbCheckInterval;
        boolean triggerHostLb;
    }

    static class SetupMSListAnswer extends Answer { }

    static class MigrateAgentConnectionCommand extends Command {
        List<String> msList, avoidMsList;
        String lbAlgorithm;
        Long lbCheckInterval;
    }

    static class MigrateAgentConnectionAnswer extends Answer { }

    static class SetupKeyStoreCommand extends Command {
        int validityDays;
        String keystorePassword;
        boolean handleByAgent;
    }

    static class SetupKeystoreAnswer extends Answer { String csr; }

    static class SetupCertificateCommand extends Command {
        String certificate, privateKey, caCertificates;
        boolean handleByAgent;
    }

    static class SetupCertificateAnswer extends Answer { }

    static class PhysicalNetworkSetupInfo {
        Long physicalNetworkId;
        String privateNetworkName, publicNetworkName, guestNetworkName, storageNetworkName, mgmtVlan;
    }

    static class CheckNetworkCommand extends Command { List<PhysicalNetworkSetupInfo> networkInfoList; }

    static class CheckNetworkAnswer extends Answer { @SerializedName("_reconnect") boolean reconnect; }

    static class CheckHealthCommand extends Command { }

    static class CheckHealthAnswer extends Answer { }

    static class HostStatsEntry {
        long hostId;
        String entityType;
        double cpuUtilization, averageLoad, networkReadKBs, networkWriteKBs, totalMemoryKBs, freeMemoryKBs;
    }

    static class GetHostStatsCommand extends Command {
        String hostGuid, hostName;
        long hostId;
    }

    static class GetHostStatsAnswer extends Answer { HostStatsEntry hostStats; }
}
